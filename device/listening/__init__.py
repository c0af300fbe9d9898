"""The live path from source to verdict, and the screening of recordings by it."""
