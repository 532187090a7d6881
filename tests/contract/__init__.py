"""What every backend promises for every transform, on each target."""
