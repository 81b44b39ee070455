"""The prompt banks that come with the package, one YAML file a task."""
