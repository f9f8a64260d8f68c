"""Fine-tuning on GLUE: tasks, data, model, metrics and reports shared by the two scripts."""
