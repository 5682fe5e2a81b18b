"""Models that were trained elsewhere become a reference graph, with what was measured of it. One file a format."""
