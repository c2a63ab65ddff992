"""What the plugin knows of Axolotl: its configuration, how it loads datasets, where its versions differ."""
