"""Attacks on decisions (evasion, mimicry, poisoning) and on the model itself (extraction)."""
