"""kdsec: the security of knowledge distillation, as a book you can run."""

__version__ = "0.1.0"
