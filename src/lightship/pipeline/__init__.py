"""Recipe, stages and their cache; `ship` puts them in a row."""
