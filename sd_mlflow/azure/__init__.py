"""Azure ML through its own SDK: register a package, deploy it, ask it, delete it."""
