"""Secondary structures of RNA: as boxes, from boxes, measured and drawn."""
