"""Defences, one paper a module: teachers whose answers teach badly."""
