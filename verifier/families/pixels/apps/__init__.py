"""The picture paths of the apps that ship a LLaVA: from a picture to the bytes that each of them feeds to `vision_encoder`."""
