"""How well a model answers: tasks, runs against an endpoint, records, statistics, preflight."""
