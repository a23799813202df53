"""What the systems run on: settings, the local stack, topics, schemas, migrations and the command line."""
