"""Shells: how a command reaches the machine it is meant for."""
