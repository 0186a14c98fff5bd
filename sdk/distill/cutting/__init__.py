"""Where a model can be cut in two, and how a student takes the place of one side: sites, borders, splices."""
