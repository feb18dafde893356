"""Landmarks: where they are, as exact points; what a network learns of them, as heatmaps; and the way back."""
