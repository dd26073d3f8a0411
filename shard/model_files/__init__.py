"""What a model's directory holds and says, before anything of it is built. Called by ``loader`` and ``encoders``."""
