"""Pictures and a report of what a run tunes: what a person looks at to trust a plan."""
