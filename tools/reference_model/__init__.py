"""The reference model: a small trained transformer whose answers depend on what its KV cache remembers.

How it is built, trained, exported, run in Torch and measured. What it reads is `kvquant.reference`, which the
evaluation needs too. Nothing is imported from this module itself.
"""
