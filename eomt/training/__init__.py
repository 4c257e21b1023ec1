"""The LightningModule, its recipe, checkpoints and callbacks."""
