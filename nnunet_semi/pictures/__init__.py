"""Images of cases made visible: found beside their labels, brought to grey, and drawn on."""
