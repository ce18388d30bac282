"""The engine, which runs any saga durably and does not depend on shares."""
