"""Early stopping: train until the validation loss has not improved for ten epochs."""

from pydoc_data.topics import topics

from early_stopping_pytorch import EarlyStopping
from torch import float64, load, manual_seed, nn, no_grad, optim, set_default_dtype, tensor
from torch.utils.data import DataLoader, TensorDataset

set_default_dtype(float64)
manual_seed(3)

text = topics["class"][:2500]
letters = sorted(set(text))
codes = [letters.index(letter) for letter in text]
context, cut = 8, 2000
inputs = tensor([codes[i : i + context] for i in range(len(codes) - context)])
targets = tensor(codes[context:])
train_loader = DataLoader(TensorDataset(inputs[:cut], targets[:cut]), batch_size=64, shuffle=True)
valid_loader = DataLoader(TensorDataset(inputs[cut:], targets[cut:]), batch_size=64)

model = nn.Sequential(
    nn.Embedding(len(letters), 32),
    nn.Flatten(),
    nn.Linear(32 * context, len(letters)),
)
criterion = nn.CrossEntropyLoss()
optimizer = optim.Adam(model.parameters(), lr=0.002)
early_stopping = EarlyStopping(patience=10, verbose=True)

losses, valid_losses = [], []
for epoch in range(100):
    model.train()
    for x, y in train_loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with no_grad():
        sums = [criterion(model(x), y).item() * len(y) for x, y in valid_loader]
    valid_losses.append(sum(sums) / len(targets[cut:]))
    early_stopping(valid_losses[-1], model)
    if early_stopping.early_stop:
        print(f"stopped after epoch {epoch + 1}")
        break

model.load_state_dict(load("checkpoint.pt"))
