"""``fastconv finetune``: a pretrained network on images of one's own."""
