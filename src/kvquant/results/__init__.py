"""What commands find out, as values: one frozen dataclass for each JSON document, whose fields are its keys.

They stand below everything that makes or shows them, so that `report` reads what `evals` writes without
importing it. `kvquant.documents` reads, writes and describes them; `kvquant schema` prints the descriptions.
Every number that is not known is None and null, never 0. Old documents are read: a field that was added later
has a default.
"""
