"""Bits for each unit of a model, chosen so that a size loses least.

    plan --> parts and their packings --> measured losses --> frontier --> choice --> recipe

choices       packings that may be chosen, from the command line
frontier      least loss for every size, of independent choices
problem       parts of a model, what each may be packed as, and what that costs in bytes
target        the size, the bits per weight or the loss that is asked for
writing       a choice as a plain recipe file
"""
