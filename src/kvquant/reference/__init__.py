"""The reference model: a small trained transformer whose answers depend on what its KV cache remembers.

Everything about it is made here: the words it knows, the tasks it is trained on, the network, the training
and the file it ships as. Nothing is imported from this module itself; torch is loaded only by the modules
that train or run.
"""
