"""Sharewright's deciding half: what may be asked, where it goes, and the ways to ask."""
