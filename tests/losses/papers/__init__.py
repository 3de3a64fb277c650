"""The equations of the papers, written from the papers in plain float64 and independent of the package.

Nothing here imports kdengine. A function NAME is the paper's equation with the paper's reduction; NAME_code is what
the published code computes, where its formula or its reduction is another one. An argument ``eps`` is 0 for the paper
and the value named in the docstring for the published code, where the code differs by a numerical guard alone.

Functions of terms with a temperature include the factor T^2 (Hinton et al. 2015, section 2) also where a paper's
equation leaves it out; the docstrings say where it comes from. Results of shape (B,) hold one value per item.
"""
