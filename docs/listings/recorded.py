"""A plain training script, and `record` around its loop."""

from torch import manual_seed, nn, optim, randint

from nplm.parity import record

manual_seed(0)
model = nn.Sequential(
    nn.Embedding(50, 32),
    nn.Flatten(),
    nn.Linear(32 * 8, 64),
    nn.GELU(),
    nn.Linear(64, 50),
)
optimizer = optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999))
criterion = nn.CrossEntropyLoss()

with record(model, optimizer) as recorder:
    for _ in range(10):
        x, y = randint(50, (16, 8)), randint(50, (16,))
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.note("loss", "loss", loss)

recorder.trace.save("trace")
