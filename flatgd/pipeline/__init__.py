"""A recipe at work, stage by stage: models, generations, scores."""
