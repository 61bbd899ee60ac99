import torch

from dps_hf.nano.name_alignment import name_alignment_loss


def test_names_in_two_languages_are_drawn_together(make_model, tiny_processor):
    model = make_model()
    optimizer = torch.optim.Adam(model.get_input_embeddings().parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = name_alignment_loss(model, tiny_processor, step=0, count=8)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert tiny_processor.tokenizer.backend_tokenizer.padding is None  # as it will be saved
