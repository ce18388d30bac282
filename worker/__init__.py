"""Sharewright's doing half: the engine, the three plug-in interfaces and what implements them."""
