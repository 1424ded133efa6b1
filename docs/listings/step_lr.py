"""StepLR: the learning rate is divided by ten every thirty epochs."""

from pydoc_data.topics import topics

from torch import float64, manual_seed, nn, optim, set_default_dtype, tensor
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

set_default_dtype(float64)
manual_seed(2)

text = topics["for"][:1500]
letters = sorted(set(text))
codes = [letters.index(letter) for letter in text]
context = 6
inputs = tensor([codes[i : i + context] for i in range(len(codes) - context)])
targets = tensor(codes[context:])
loader = DataLoader(TensorDataset(inputs, targets), batch_size=256, shuffle=True)

model = nn.Sequential(
    nn.Embedding(len(letters), 16),
    nn.Flatten(),
    nn.Linear(16 * context, len(letters)),
)
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.1)
scheduler = StepLR(optimizer, step_size=30, gamma=0.1)

losses = []
for epoch in range(75):
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    scheduler.step()
    if (epoch + 1) % 15 == 0:
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}, next lr {scheduler.get_last_lr()[0]:g}")
