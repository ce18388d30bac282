"""A compute helper for tests that orders its machines: files in a directory, a cloud's mailbox.

The test's own process reads the orders and boots :class:`tests.support.machines.Machine` by them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

from pydantic import Field

from worker.helpers.compute.base import ComputeHelper, Reachable
from worker.helpers.compute.machines import (
    SshOptions,
    boot_data,
    check_reachable,
    ssh_attributes,
    ssh_shell,
)
from worker.model import (
    NetworkInfo,
    RequestContext,
    SecurityService,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import Options
from worker.systems.shell.base import Guarded, Shell
from worker.systems.shell.local import LocalShell


class OrderOptions(SshOptions):
    orders: Path = Field(description="Where the orders lie.")


class OrderedMachines(ComputeHelper, Reachable):
    OptionsModel: ClassVar[type[Options]] = OrderOptions

    def get_share_server(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        del share_network, security_services
        options = cast("OrderOptions", self.options)
        (address,) = network_info.addresses
        order = self._order(share_server)
        shell = Guarded(LocalShell(), context.guard)
        if shell.read_file(order) is None:
            user_data = boot_data(options, share_server.id)
            shell.write_file(order, json.dumps({"address": address, "user_data": user_data}))
        attributes = ssh_attributes(options, share_server.id, address=address)
        check_reachable(options, share_server.id, attributes, server_id=share_server.id)
        return ShareServerDetails(share_server.id, (address,), attributes)

    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None:
        Guarded(LocalShell(), context.guard).remove_file(self._order(share_server))

    def shell(self, share_server: ShareServer) -> Shell:
        return ssh_shell(cast("OrderOptions", self.options), share_server)

    def _order(self, share_server: ShareServer) -> str:
        return f"{cast('OrderOptions', self.options).orders}/{share_server.id}"
