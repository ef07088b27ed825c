"""Attacks: on a classifier's decisions (``evasion``) and on its worth to its owner (``stealing``)."""
