/** Lists, page by page. */

interface PageRequest { pageToken?: string }
interface Page { nextPageToken: string }

/** Yields each page of a list, such as `pages(client.listCarts, { parent: "users/alice" })`. */
export async function* pages<Q extends PageRequest, R extends Page>(
  list: (request: Q) => Promise<R>, request: Q,
): AsyncGenerator<R, void, undefined> {
  for (let pageToken = request.pageToken ?? ""; ; ) {
    const page = await list({ ...request, pageToken });
    yield page;
    if (page.nextPageToken === "") {
      return;
    }
    pageToken = page.nextPageToken;
  }
}
