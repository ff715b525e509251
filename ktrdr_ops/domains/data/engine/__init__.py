"""What only the data domain needs. Pure parts (bars, timeframes, segments, gaps, pacing, quality) do no I/O."""
