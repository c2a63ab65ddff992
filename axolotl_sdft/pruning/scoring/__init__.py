"""How important each layer is: metrics that run the seed model on calibration text, and a cache of what they gave."""
