"""Makes Keystone's tables, keys and first user, in one process for it takes seconds to import.

Usage: keystone_schema.py CONFIGURATION PASSWORD REGION URL
"""

from __future__ import annotations

import sys

from keystone.cmd import cli

configuration, password, region, url = sys.argv[1:]
root = ("--keystone-user", "root", "--keystone-group", "root")
bootstrap = ("--bootstrap-password", password, "--bootstrap-region-id", region)
urls = ("--bootstrap-public-url", url, "--bootstrap-internal-url", url)
for command in (
    ("db_sync",),
    ("fernet_setup", *root),
    ("credential_setup", *root),
    ("bootstrap", *bootstrap, *urls),
):
    cli.CONF.reset()  # or the next command would be refused: the last one was parsed
    cli.main(("keystone-manage", "--config-file", configuration, *command))
