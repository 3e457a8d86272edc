"""The trained thing: decode, preprocess, network, model folder, predict.

Pure: it knows no Ray, no Lightning, no Hydra and no web framework. Training, serving and the folder job all rest on
it, which is why the same picture gets the same answer in all three.
"""
