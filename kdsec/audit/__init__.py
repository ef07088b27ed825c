"""Audit of a classifier that this package did not train: what serving its answers gives away.

``kdsec.audit.measure.audit`` runs the pool of extraction attacks on a model and behind each output defence,
``kdsec.audit.verdict`` recommends by a stated rule, ``kdsec.audit.page`` writes one HTML page and one JSON
file. ``kdsec.audit.poisons`` looks through a set that is about to be distilled on. On the command line:
``kdsec audit --help``.
"""
