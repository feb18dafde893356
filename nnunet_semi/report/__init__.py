"""One HTML file about trained models and scored predictions: what was trained on what, curves, scores, pictures."""
