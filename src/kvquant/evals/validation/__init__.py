"""`kvquant validate`: one model, one suite, every policy against a baseline, and a verdict on each.

What a folder of a validation holds is in `kvquant.evals.validation.records`, what comes out of it in
`kvquant.results.validation`.
"""
