"""Makes Neutron's tables from its models: its migrations do not run on SQLite.

Usage: neutron_schema.py CONFIGURATION
"""

from __future__ import annotations

import sys

import sqlalchemy
from neutron.common import config
from oslo_config import cfg
from oslo_db import options

config.register_common_config_options()
config.init(["--config-file", sys.argv[1]])
cfg.CONF.register_opts(options.database_opts, "database")

from neutron.db.migration.models import head  # noqa: E402 - the models read the configuration

head.get_metadata().create_all(sqlalchemy.create_engine(cfg.CONF.database.connection))
