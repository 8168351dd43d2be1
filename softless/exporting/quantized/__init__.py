"""Files in eight bits: the recipes of each tool in the order in which they are tried."""
