"""Evaluation: metrics, and the protocols of VideoBERT's paper (Sun et al., ICCV 2019).

    captions        BLEU, ROUGE-L, CIDEr and METEOR of written captions
    classification  accuracy, F1, AUROC, calibration of labels; bootstrap by group
    retrieval       recall at k and median rank of text and video
    cloze           zero-shot cloze, and masked words with and without the picture
    alignment       whether text and video belong together
    captioning      the decoder's captions, scored
    examples        captioned videos out of a manifest
    clips           their clip features, from the engine or from files
    evaluate        `vbkit evaluate`, from Python

Importing `captions`, `classification`, `retrieval` and `examples` does not import torch.
"""
