"""From a picture file to pixels, as the checkpoint's processor has them."""
