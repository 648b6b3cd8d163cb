import { createInterface } from "node:readline";
import { Code, ConnectError, createCartClient, watchCart } from "cart-grpc";
import { createNodeTransport } from "cart-grpc/node";

const transport = createNodeTransport(process.argv[2]!);
const client = createCartClient(transport);
const parent = "users/watcher/carts/default";
await client.addItem({ parent, item: { sku: "beans" } });
const restarted = new Promise((resolve) => createInterface(process.stdin).once("line", resolve));
const cancel = new AbortController();
let items = 0;
try {
  for await (const cart of watchCart(client, parent, { signal: cancel.signal })) {
    if (cart.itemCount === items) {
      continue;
    }
    items = cart.itemCount;
    console.log(`items: ${items}`);
    if (items === 1) {
      void restarted.then(() => client.addItem({ parent, item: { sku: "kettle" } }));
    } else {
      cancel.abort();
    }
  }
} catch (error) {
  console.log(Code[ConnectError.from(error).code]);
}
transport.close();
process.stdin.destroy();
