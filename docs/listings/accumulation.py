"""Gradient accumulation by hand: four small batches make one update."""

from pydoc_data.topics import topics

from torch import float64, manual_seed, nn, optim, set_default_dtype, tensor
from torch.utils.data import DataLoader, TensorDataset

set_default_dtype(float64)
manual_seed(1)

text = topics["assignment"][:3000]
letters = sorted(set(text))
codes = [letters.index(letter) for letter in text]
context = 8
inputs = tensor([codes[i : i + context] for i in range(len(codes) - context)])
targets = tensor(codes[context:])
loader = DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)

model = nn.Sequential(
    nn.Embedding(len(letters), 16),
    nn.Flatten(),
    nn.Linear(16 * context, len(letters)),
)
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

accumulation_steps = 4
losses = []
for epoch in range(3):
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y)
        losses.append(loss.item())
        loss = loss / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
    print(f"epoch {epoch + 1}: loss {sum(losses[-len(loader) :]) / len(loader):.4f}")
