"""The page at /docs: the OpenAPI document rendered by a few lines of script, without anything from another host."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

__all__ = ["PAGE", "POLICY"]

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--dim:#888;--post:#1a7f4b;--get:#1f6feb}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0}
summary{cursor:pointer;padding:.5rem .8rem}details>div{padding:0 .8rem .8rem}b.m{display:inline-block;width:4rem}
b.POST{color:var(--post)}b.GET{color:var(--get)}code{font-size:.92em}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-top:1px solid var(--line)}
.dim{color:var(--dim)}pre{overflow:auto;background:#8881;padding:.6rem;border-radius:6px}
"""

_SCRIPT: Final = """
const el=(tag,attributes,...children)=>{const node=document.createElement(tag);Object.assign(node,attributes||{});
 node.append(...children.filter(child=>child!=null));return node};
const name=reference=>reference.split('/').pop();
const shape=schema=>{if(!schema)return'';if(schema.$ref)return name(schema.$ref);
 if(schema.allOf)return schema.allOf.map(shape).join(' & ');
 const any=schema.oneOf||schema.anyOf;if(any)return any.map(shape).join(' or ');
 if(schema.const!==undefined)return JSON.stringify(schema.const);
 if(schema.enum)return schema.enum.length>12?schema.enum.length+' names':schema.enum.join(' | ');
 if(schema.type==='array')return'list of '+shape(schema.items);
 let text=Array.isArray(schema.type)?schema.type.join(' or '):schema.type||'';
 if(schema.minimum!==undefined||schema.maximum!==undefined)text+=' '+(schema.minimum??'')+'..'+(schema.maximum??'');
 return text};
const table=(head,rows)=>el('table',null,el('tr',null,...head.map(text=>el('th',null,text))),
 ...rows.map(row=>el('tr',null,...row.map(cell=>el('td',null,cell)))));
const code=text=>el('code',null,text);
const properties=schema=>table(['Field','Type','Meaning'],Object.entries(schema.properties||{}).map(([field,found])=>
 [el('span',null,code(field),(schema.required||[]).includes(field)?' *':''),shape(found),
  (found.description||'')+(found.default!==undefined?' Default: '+JSON.stringify(found.default)+'.':'')]));
fetch('/openapi.json').then(answer=>answer.json()).then(api=>{
 const page=document.getElementById('page');
 page.append(el('h1',null,api.info.title+' '+api.info.version),
  ...api.info.description.split('\\n\\n').map(text=>el('p',null,text)),
  el('p',null,el('a',{href:'/openapi.json'},'openapi.json'),' · ',el('a',{href:'/problems'},'problem types')));
 for(const tag of api.tags){
  page.append(el('h2',null,tag.name),el('p',{className:'dim'},tag.description));
  for(const[path,methods]of Object.entries(api.paths))for(const[method,operation]of Object.entries(methods)){
   if(operation.tags[0]!==tag.name)continue;
   const body=el('div');
   if(operation.description)body.append(el('p',null,operation.description));
   const scopes=(operation.security||[]).flatMap(found=>Object.values(found).flat());
   if(scopes.length)body.append(el('p',null,'Scope: ',code(scopes.join(' '))));
   if(operation.parameters)body.append(el('h4',null,'Parameters'),table(['Name','In','Type','Meaning'],
    operation.parameters.map(found=>[el('span',null,code(found.name),found.required?' *':''),found.in,
     shape(found.schema),found.description||''])));
   if(operation.requestBody)body.append(el('h4',null,'Body'),table(['Content type','Content'],
    Object.entries(operation.requestBody.content).map(([type,found])=>[code(type),shape(found.schema)])));
   body.append(el('h4',null,'Answers'),table(['Status','Meaning','Content'],
    Object.entries(operation.responses).map(([status,found])=>{
     const answer=found.$ref?api.components.responses[name(found.$ref)]:found;
     return[status,answer.description,Object.values(answer.content||{}).map(item=>shape(item.schema)).join(', ')]})));
   page.append(el('details',{id:operation.operationId},el('summary',null,
    el('b',{className:'m '+method.toUpperCase()},method.toUpperCase()),code(path),' ',
    el('span',{className:'dim'},operation.summary)),body));
  }}
 page.append(el('h2',null,'Schemas'));
 for(const[title,schema]of Object.entries(api.components.schemas))page.append(el('details',{id:title},
  el('summary',null,code(title),' ',el('span',{className:'dim'},schema.description||'')),
  el('div',null,schema.properties?properties(schema):el('p',null,shape(schema)))));
 if(location.hash){const target=document.getElementById(location.hash.slice(1));
  if(target){target.open=true;target.scrollIntoView()}}
}).catch(error=>document.getElementById('page').append('The document cannot be read: '+error));
"""

PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    f"<title>Streambank API</title><style>{_STYLE}</style>"
    '<main id="page"><noscript>This page needs JavaScript; the document is at /openapi.json.</noscript></main>'
    f"<script>{_SCRIPT}</script></html>"
)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY: Final = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: only its own script and style, only this host."""
