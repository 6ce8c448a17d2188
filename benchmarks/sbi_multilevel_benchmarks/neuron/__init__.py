"""A layer-5 pyramidal cell: its morphology, simulator, summaries, and stored runs."""
